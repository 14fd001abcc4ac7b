"""Generated from ``proto/`` by ``generate.py``; only ``_pool.py`` is written by hand."""
