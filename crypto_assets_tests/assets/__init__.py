"""Tests of crypto_assets.assets."""
