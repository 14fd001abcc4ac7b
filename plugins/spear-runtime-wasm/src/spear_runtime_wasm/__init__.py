"""SPEAR's runtime for WebAssembly modules; what there is to import is in `plugin`."""
