"""The command line: finding a verb, options from flags and files, progress, signals. No verb is defined here."""
