"""Rewards in the shape that each trainer calls. One module a trainer; none imports the trainer, or torch.

Every module takes what scores first: a `RewardClient`, `LocalRewards`, or the URL of a server. Its docstring
is the recipe.
"""
