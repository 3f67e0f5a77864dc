"""Paired comparison of policies: block plans, the judge, bootstrap statistics, verdicts and tables."""
