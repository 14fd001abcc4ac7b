#!/bin/sh
# How many time zones has each part of the world? A pipeline of ordinary tools: the input of the
# function on stdin, its output on stdout, everything on stderr in the task's log.
set -eu
grep -v '^#' | cut -f 3 | cut -d / -f 1 | sort | uniq -c | sort -k 1,1nr -k 2 |
  awk '{ printf "%-12s %d\n", $2, $1; sum += $1 } END { print sum " zones" > "/dev/stderr" }'
