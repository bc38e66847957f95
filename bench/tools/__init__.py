"""What the other rooms measure with."""
