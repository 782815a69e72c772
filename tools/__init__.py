"""What a maintainer calls."""
