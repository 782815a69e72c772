"""What concerns the paper alone: its printed tables, figures and claims beside ours."""
