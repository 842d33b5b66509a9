"""The search of a recipe's hyperparameters, judged on patients that it never saw."""
