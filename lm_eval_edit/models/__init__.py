"""Models as the installed transformers has them: what it calls things, and what a model keeps from token to token."""
