"""Whether the K paths of a model differ, and whether that helps: figures with their controls, and what they show."""
