"""The report for users: text from one evidence document."""
