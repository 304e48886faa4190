"""Tests of crypto_assets; the tree mirrors the package."""
