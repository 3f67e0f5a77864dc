"""What guards and decisions mean, in words for a person on call; the live page shows them."""

from __future__ import annotations

GUARD_MEANINGS: dict[str, str] = {
    "floor": "A weight was raised to the smallest one allowed, so that every server keeps being measured.",
    "cap": "A server's share was cut to the largest one allowed.",
    "step": "A change was larger than one step may be; it is made in several.",
    "rate": "The last change is too recent; this one waits.",
    "traffic": "Too few requests to decide by; the weights stay.",
    "stale": "The statistics cannot be read; the weights stay, then the baseline takes over.",
    "novel": "Traffic or servers unlike anything observed; the baseline is in force.",
    "policy": "The policy gave no answer; the baseline is in force.",
    "errors": "More requests failed than under the baseline, which is back in force.",
    "art": "Requests were later than under the baseline, which is back in force.",
    "overload": "Every server of a group is late; its shares are drawn towards the baseline.",
    "measuring": "The baseline is in force and is being measured, to compare the policy with it.",
    "operator": "An operator's order is in force.",
    "actuation": "NGINX did not take a change; the former control is in force.",
    "silent": "A server is dead or answers nothing; it keeps a share for probing only.",
}
BACK_TO_BASELINE = "back to the baseline"
"""What the reason of a guard against harm says."""
SOURCE_MEANINGS = {
    "policy": "The learned policy decides.",
    "baseline": "The baseline decides: the control that was there before, or a simple rule.",
    "hold": "Nothing changes until there is something to decide by.",
}
MODE_MEANINGS = {
    "shadow": "Shadow: decides and records; nothing in NGINX changes.",
    "canary": "Canary: applies a percentage of the change: in memory to that part of the requests, by reload to every"
    " share.",
    "active": "Active: the policy's control is in force, within the guards.",
}
