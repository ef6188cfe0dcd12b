#pragma once

#include <cstddef>

namespace moiety {

/// How many files, sockets and the like this process may have open at once.
std::size_t descriptor_limit();

/// Raises that as far as the system allows (the hard limit). For the start of a program; what it
/// starts has the same limit. Where that fails, the limit stays.
void raise_descriptor_limit();

/// Whether `count` more can be opened now, by the limit and by the whole machine's.
bool descriptors_left(std::size_t count);

}  // namespace moiety
