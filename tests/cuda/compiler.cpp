// A libnvrtc.so that turns a kernel's source into a shared library for driver.cpp, by the system's C++ compiler. Its
// "cubins" hold host code. DAY0_EMULATOR may contain no-compile, which makes every compilation fail.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

struct Program {
    std::string source, log, image;
    std::vector<std::pair<std::string, std::string>> headers;
};

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream all;
    all << file.rdbuf();
    return all.str();
}

void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// The names after KERNEL(threads) and its like.
std::vector<std::string> kernels(const std::string& source) {
    std::vector<std::string> names;
    const std::string mark = "\nKERNEL";
    for (size_t at = source.find(mark); at != std::string::npos; at = source.find(mark, at + 1)) {
        size_t start = source.find(") ", at) + 2;
        names.push_back(source.substr(start, source.find('(', start) - start));
    }
    return names;
}

// Tables by which the driver finds kernels and the sizes of their arguments.
std::string tables(const std::string& source) {
    std::string text = "\nextern \"C\" __attribute__((visibility(\"default\"))) bool emulator_find(const char* name, void** run, "
                       "void** sizes) {\n";
    for (const auto& name : kernels(source)) {
        text += "  if (!strcmp(name, \"" + name + "\")) { *run = (void*)&emulator::Trampoline<&" + name +
                ">::run; *sizes = (void*)&emulator::Trampoline<&" + name + ">::sizes; return true; }\n";
    }
    return text + "  return false;\n}\n";
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return 0;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int code) {
    return code == 0 ? "NVRTC_SUCCESS" : code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}

API nvrtcCreateProgram(void** program, const char* source, const char*, int count, const char* const* headers, const char* const* names) {
    Program* made = new Program;
    made->source = source;
    for (int i = 0; i < count; i++) made->headers.emplace_back(names[i], headers[i]);
    *program = made;
    return 0;
}

API nvrtcDestroyProgram(void** program) {
    delete (Program*)*program;
    *program = nullptr;
    return 0;
}

API nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    Program& program = *(Program*)handle;
    const char* setting = std::getenv("DAY0_EMULATOR");
    if (setting && strstr(setting, "no-compile")) {
        program.log = "emulated failure of the compiler";
        return 6;
    }
    char path[] = "/tmp/day0-emulator-XXXXXX";
    if (!mkdtemp(path)) return 1;
    std::string dir = path;
    for (const auto& header : program.headers) write(dir + "/" + header.first, header.second);
    write(dir + "/program.cpp", program.source + tables(program.source));
    std::string command = std::string(EMULATOR_CXX) + " -std=c++17 -O1 -fPIC -shared -ffp-contract=off -fvisibility=hidden -w -include '" +
                          EMULATOR_DIR + "/device.h' -I '" + dir + "'";
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "-D", 2)) command += std::string(" '") + options[i] + "'";
    }
    command += " -o '" + dir + "/module.so' '" + dir + "/program.cpp' > '" + dir + "/log' 2>&1";
    int status = system(command.c_str());
    program.log = read(dir + "/log");
    program.image = read(dir + "/module.so");
    if (system(("rm -rf '" + dir + "'").c_str()) != 0) return 1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && !program.image.empty() ? 0 : 6;
}

API nvrtcGetProgramLogSize(void* program, size_t* bytes) {
    *bytes = ((Program*)program)->log.size() + 1;
    return 0;
}

API nvrtcGetProgramLog(void* program, char* log) {
    strcpy(log, ((Program*)program)->log.c_str());
    return 0;
}

API nvrtcGetCUBINSize(void* program, size_t* bytes) {
    *bytes = ((Program*)program)->image.size();
    return 0;
}

API nvrtcGetCUBIN(void* handle, char* image) {
    Program& program = *(Program*)handle;
    memcpy(image, program.image.data(), program.image.size());
    return 0;
}
