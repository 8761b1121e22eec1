"""Videos: every frame through a restoration server, with sound, subtitles, times and colours as they were.

    from ipt_triton import RestorationClient
    from ipt_triton.client.video import restore_video

    with RestorationClient("localhost:8001") as client:
        restore_video(client, "clip.mp4", "restored.mp4", "denoise_30")

It needs the extra `video` (PyAV). Importing it without raises `VideoLibraryMissing`.
"""

from ipt_triton.client.video.errors import DamagedVideo, UnsupportedVideo, VideoError, VideoLibraryMissing

try:
    import av
except ImportError as error:
    raise VideoLibraryMissing("videos need PyAV, which is not installed: pip install 'ipt-triton[video]'") from error

from ipt_triton.client.video.restoration import VideoReport, restore_video

av.logging.set_level(None)  # FFmpeg's own lines; what matters is raised or noted

__all__ = [
    "DamagedVideo",
    "UnsupportedVideo",
    "VideoError",
    "VideoLibraryMissing",
    "VideoReport",
    "restore_video",
]
