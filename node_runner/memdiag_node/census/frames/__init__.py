"""Page frames by what they are used for and whom they are charged to."""
