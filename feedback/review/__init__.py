"""Lists the answers that wait for a reviewer, and keeps what reviewers decide."""
