"""What more than one part of the package must agree on."""

SLOTS = 24  # clicks of each sign that the network sees, the newest ones
