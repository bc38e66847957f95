"""How good are the masks, and what makes them so?"""
