"""The marks of the plugin system, apart from the hookspecs so that a plugin imports little."""

import pluggy

PROJECT = "spear"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
