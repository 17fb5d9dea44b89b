"""What a runner delivers: checked as input from a hostile node, attributed, and put into words."""
