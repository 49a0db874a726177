"""Our own wire: camelCase JSON; what comes in may hold nothing that is not known."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )


class Input(Wire):
    model_config = ConfigDict(extra="forbid", validate_by_name=False)
