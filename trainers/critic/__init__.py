"""Training critics: reward models of a user's own, from pictures of a generator and a judge of them."""
