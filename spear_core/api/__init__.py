"""All that a plugin may import, with :mod:`spear_core.errors`, ``rpc`` and ``testing``.

Abstract classes, specs and values of each kind of plugin; no behaviour, no I/O.
"""

from spear_core.api._artifact import Artifact, IsolationLevel, Limits
from spear_core.api._channel import (
    Channel,
    ChannelListener,
    ChannelStatistics,
    LocalChannel,
    Message,
    MessageFlag,
    MessageKind,
    Transport,
    TransportSpec,
)
from spear_core.api._config import (
    ExecutionConfig,
    LogConfig,
    PoolConfig,
    SpearletConfig,
    TaskConfig,
)
from spear_core.api._execution import (
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    ExecutionUsage,
)
from spear_core.api._front_door import FrontDoorContext, FrontDoorSpec
from spear_core.api._hostcall import HostcallContext, HostcallProvider, HostcallSpec
from spear_core.api._node import (
    ArtifactInfo,
    ArtifactUpload,
    ExecutionMode,
    InstanceInfo,
    InstanceState,
    InvokeRequest,
    InvokeResponse,
    LogChunk,
    LogEntry,
    NodeApi,
    NodeStatus,
    PluginInfo,
    RuntimeInfo,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.api._plugin import ChannelFactory, ChannelOffer, Hostcalls, PluginContext
from spear_core.api._runtime import (
    Capability,
    Fingerprint,
    Health,
    Instance,
    InstanceSpec,
    InstanceStatistics,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
)
from spear_core.api._scheduler import NodeSnapshot, Scheduler, SchedulerSpec, TaskRequirements
from spear_core.api._store import ObjectPage, ObjectStat, ObjectStore, ObjectStoreSpec

API_VERSION = 1
"""The version of every spec that this host speaks."""

__all__ = [
    "API_VERSION",
    "Artifact",
    "ArtifactInfo",
    "ArtifactUpload",
    "Capability",
    "Channel",
    "ChannelFactory",
    "ChannelListener",
    "ChannelOffer",
    "ChannelStatistics",
    "ErrorInfo",
    "ExecutionConfig",
    "ExecutionMode",
    "ExecutionRequest",
    "ExecutionResponse",
    "ExecutionStatus",
    "ExecutionUsage",
    "Fingerprint",
    "FrontDoorContext",
    "FrontDoorSpec",
    "Health",
    "HostcallContext",
    "HostcallProvider",
    "HostcallSpec",
    "Hostcalls",
    "Instance",
    "InstanceInfo",
    "InstanceSpec",
    "InstanceState",
    "InstanceStatistics",
    "InvokeRequest",
    "InvokeResponse",
    "IsolationLevel",
    "Limits",
    "LocalChannel",
    "LogChunk",
    "LogConfig",
    "LogEntry",
    "Message",
    "MessageFlag",
    "MessageKind",
    "NodeApi",
    "NodeSnapshot",
    "NodeStatus",
    "ObjectPage",
    "ObjectStat",
    "ObjectStore",
    "ObjectStoreSpec",
    "PluginContext",
    "PluginInfo",
    "PoolConfig",
    "Runtime",
    "RuntimeInfo",
    "RuntimeInstanceId",
    "RuntimeSpec",
    "Scheduler",
    "SchedulerSpec",
    "SpearletConfig",
    "TaskConfig",
    "TaskInfo",
    "TaskRequirements",
    "TaskResult",
    "TaskState",
    "Transport",
    "TransportSpec",
]
