"""What a runner delivers: checked as what a hostile node may have written, named, and put into words."""
