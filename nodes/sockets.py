"""The types which travel along the pack's wires and are not ComfyUI's own, and the categories of the node menu."""

from comfy_api.latest import io

Motion = io.Custom("MUSEV_MOTION")
ReferenceNet = io.Custom("MUSEV_REFERENCENET")
IPAdapter = io.Custom("MUSEV_IPADAPTER")

# made by other packs too: a list with one OpenPose dictionary per frame; insightface's analysis
PoseKeypoint = io.Custom("POSE_KEYPOINT")
InsightFace = io.Custom("INSIGHTFACE")

CATEGORY = "MuseV"
