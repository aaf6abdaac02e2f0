"""One thin file per gRPC service: decode, call a store, encode."""
