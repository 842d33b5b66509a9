"""Make members of networks from other frameworks, and of members files for other frameworks."""
