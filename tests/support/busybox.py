"""The small image that the tests run: see launcher.busybox_image."""

from launcher.busybox_image import busybox_image_tar, busybox_rootfs_tar, find_busybox

__all__ = ["busybox_image_tar", "busybox_rootfs_tar", "find_busybox"]
