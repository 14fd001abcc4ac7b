"""The descriptors of our messages, apart from everybody else's.

The public protos among them (``google.rpc``, health, reflection) come with other distributions too,
each in an edition of its own, and protobuf's default pool refuses the second one it is given.
"""

from __future__ import annotations

from google.protobuf import any_pb2, descriptor_pool, duration_pb2

__all__ = ["POOL"]

POOL = descriptor_pool.DescriptorPool()
for _file in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
    POOL.AddSerializedFile(_file.serialized_pb)
