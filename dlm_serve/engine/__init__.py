"""Hooks on SGLang."""
