"""What runs on the other side of the fork: the launcher and what it does to a new process.

Standard library only: these modules run in an interpreter started with `-I -S`, without
site-packages, so that starting a process costs as little as possible.
"""
