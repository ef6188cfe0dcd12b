#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/jinja_value.h"

namespace moiety::jinja {

enum class TokenType {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  int line = 1;
  std::string text;  ///< of data, names, strings (unescaped), operators
  Int integer = 0;
  double real = 0;
};

/// Cuts a template into tokens, as Jinja's lexer does with trim_blocks and lstrip_blocks. Comments
/// are left out; the last token is kEnd. Throws Failure; `line` then says where.
std::vector<Token> tokenize(std::string_view source, int& line);

}  // namespace moiety::jinja
