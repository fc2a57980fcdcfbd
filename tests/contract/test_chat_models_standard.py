"""LangChain's own suites for chat models: against the stub server, and on a tiny random model in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from openai_stub import OpenAIStubServer
from tiny_chat_model import save_tiny_glm

from luotuo_integrations.chat_models import ChatOpenAICompatible
from luotuo_integrations.local_chat import ChatTransformers


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIStubServer]:
    with OpenAIStubServer("你好，我是测试用的桩。", models=["stub-model", "another"]) as running:
        yield running


class OpenAICompatibleParameters:
    """What both suites need to know about ChatOpenAICompatible; the base classes say what the names mean."""

    @pytest.fixture(autouse=True)
    def connect(self, server: OpenAIStubServer) -> None:
        self.base_url = server.base_url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAICompatible

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "model": "stub-model"}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"


class TestOpenAICompatibleUnit(OpenAICompatibleParameters, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"OPENAI_API_KEY": "sk-env"}, self.chat_model_params, {"api_key": "sk-env"}


class TestOpenAICompatibleIntegration(OpenAICompatibleParameters, ChatModelIntegrationTests):
    pass


@pytest.fixture(scope="module")
def tiny_glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_glm(tmp_path_factory.mktemp("models") / "glm", context=512)


class TransformersParameters:
    """What both suites need to know about ChatTransformers."""

    @pytest.fixture(autouse=True)
    def find(self, tiny_glm: Path) -> None:
        self.folder = str(tiny_glm)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTransformers

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "device": "cpu"}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


class TestTransformersUnit(TransformersParameters, ChatModelUnitTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # The standard's timeout and max_retries mean nothing without a server.
        return {"temperature": 0, "max_tokens": 10, "stop": []}


class TestTransformersIntegration(TransformersParameters, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "device": "cpu", "max_tokens": 12}
