"""Decisions on a live NGINX: guards, limits, harm detection and the audit log. No I/O but the log."""
