"""Client connections that outlive the daemon: long replies, attaches that wait, idle connections."""
