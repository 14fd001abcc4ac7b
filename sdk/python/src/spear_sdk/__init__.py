"""Write functions and agents for SPEAR in Python."""
