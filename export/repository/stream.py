"""Triton model `restore_stream`: the router, which tells how far it is as it works.

A request is answered several times: by PROGRESS, int64 [2], patches that are answered and that are due, and in the end
by the picture. Nothing of the picture is sent before all of it is decided. Its code is the router's, `router.py` beside
this file, copied there by `ipt-export`. A caller who closes the stream leaves, as one of `restore` who cancels.

A decoupled model of the Python backend. One that answered asynchronously would be given new requests without end, so
each instance takes one at a time, in an event loop of its own. Python 3.9 syntax.
"""

import asyncio
import time

import numpy as np
import triton_python_backend_utils as pb_utils
from router import TritonPythonModel as Router

EVERY_S = 0.05
"""Between two reports; the first and the last one always come."""


class TritonPythonModel(Router):
    def initialize(self, args):
        super().initialize(args)
        self._loop = asyncio.new_event_loop()

    def execute(self, requests):
        for request in requests:
            self._loop.run_until_complete(self._answer_all(request))

    async def _answer_all(self, request):
        sender = request.get_response_sender()
        told = 0.0

        def tell(done, due):
            nonlocal told
            if 0 < done < due and time.monotonic() - told < EVERY_S:
                return
            told = time.monotonic()
            progress = pb_utils.Tensor("PROGRESS", np.array([done, due], np.int64))
            sender.send(pb_utils.InferenceResponse([progress]))

        response = await self._answer(request, sender.is_cancelled, tell)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
