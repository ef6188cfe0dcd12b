#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "common/result.h"

namespace moiety {

/// Runs `body`, which returns a Result<void>, and turns what a library throws into an error. For
/// main: an exception ends a program with one line, like any other failure.
template <class Body>
Result<void> guarded(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kResourceExhausted,
                "out of memory: the model, or a size given by a flag, does not fit this machine");
  } catch (const std::exception& error) {  // e.g. an answer of another shape
    return fail(ErrorCode::kInternal, std::string("unexpected: ") + error.what());
  }
}

}  // namespace moiety
