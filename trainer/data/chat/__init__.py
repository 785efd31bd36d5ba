"""Conversations: whose turn a row holds, and how a chat template takes them."""
