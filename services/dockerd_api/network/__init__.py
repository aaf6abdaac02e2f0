"""Container networking: the predefined networks, addresses, published ports, one nftables table of ours."""
