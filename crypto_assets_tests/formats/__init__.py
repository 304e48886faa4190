"""Tests of crypto_assets.formats."""
