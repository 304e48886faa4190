"""Tests of crypto_assets.quant."""
