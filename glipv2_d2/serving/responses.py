"""The JSON of the service's answers."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field

from glipv2_d2.prediction import Answer, Caption, Prediction


class Detection(BaseModel):
    """A box, and its mask if the model has masks and they were requested."""

    name: str
    score: float = Field(ge=0, le=1)
    bbox: list[float] = Field(description="x, y, width, height in pixels of the upright image")
    segmentation: dict[str, Any] | None = Field(None, description="COCO's compressed RLE")


class Detections(BaseModel):
    """The detections in an image, best first."""

    width: int
    height: int
    names: list[str] = Field(description="class names, or phrases of the caption")
    detections: list[Detection]

    @classmethod
    def of(cls, prediction: Prediction, *, masks: bool = False) -> Self:
        height, width = prediction.image_size
        detections = [
            Detection(
                name=row["category_name"],
                score=row["score"],
                bbox=row["bbox"],
                segmentation=row.get("segmentation") if masks else None,
            )
            for row in prediction.to_coco(0)
        ]
        return cls(width=width, height=height, names=prediction.names, detections=detections)


class AnswerResponse(BaseModel):
    """The answer to a question."""

    question: str
    answer: str
    score: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, answer: Answer) -> Self:
        return cls(question=answer.question, answer=answer.answer, score=answer.score)


class CaptionResponse(BaseModel):
    """A generated caption, with the boxes of its phrases."""

    caption: str
    grounding: Detections

    @classmethod
    def of(cls, caption: Caption) -> Self:
        assert caption.grounding is not None
        return cls(caption=caption.caption, grounding=Detections.of(caption.grounding))


class Health(BaseModel):
    status: str = "ok"
    model: str
    waiting: int = Field(description="requests that wait")
