"""SPEAR over gRPC; see :mod:`spear_transport_grpc.plugin`."""
