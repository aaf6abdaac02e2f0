"""What both clients of registries need beside httpx: proxies, challenges, certificates, why TLS failed."""
