"""The table, and the engine; as a program it creates the table."""

import os
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Index, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

engine = create_engine(
    os.environ["PEER_DATABASE_URL"], pool_size=20, max_overflow=20, pool_pre_ping=True
)
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    """The models' base."""


class Event(Base):
    """One event and what became of it."""

    __tablename__ = "events"
    __table_args__ = (Index("events_user_received", "user_id", "received_at"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[str]
    type: Mapped[str]
    source: Mapped[str]
    payload: Mapped[Any | None] = mapped_column(JSONB)
    status: Mapped[int] = mapped_column(default=1)
    received_at: Mapped[datetime] = mapped_column(
        TIMESTAMP(timezone=True), server_default=func.clock_timestamp()
    )
    processed_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
    properties: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None]


if __name__ == "__main__":
    Base.metadata.create_all(engine)
