"""What to try, where, and what came of it: models, algorithms, bundles, evaluation, reports."""
