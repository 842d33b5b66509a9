"""Find the user's Kaggle credentials: access tokens, legacy keys, and logins of `kaggle auth login`."""
