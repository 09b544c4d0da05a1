// The kernels of a cubin: their names and parameters, as its own sections .nv.info.NAME give them.
#pragma once
#include <elf.h>

#include "state.h"

namespace stand_in {

constexpr unsigned CUDA_MACHINE = 190;                       // e_machine
constexpr unsigned WITH_BYTES = 4;                           // an attribute's format: its value is a length
constexpr unsigned PARAMETER = 0x17, PARAMETERS_SIZE = 0x19; // EIATTR_KPARAM_INFO, EIATTR_CBANK_PARAM_SIZE

inline Kernel kernel_of(const std::string& name, const unsigned char* begin, const unsigned char* end) {
    Kernel kernel{name, {}, 0};
    for (const unsigned char* at = begin; at + 4 <= end;) {
        const unsigned format = at[0], attribute = at[1], value = at[2] | at[3] << 8;
        at += 4;
        if (format == WITH_BYTES) {
            if (attribute == PARAMETER && value >= 12 && at + 12 <= end) {
                unsigned words[3];
                std::memcpy(words, at, sizeof words);
                kernel.parameters.push_back({words[1] >> 16, words[2] >> 18 & 0x3fff});
            }
            at += value;
        } else if (attribute == PARAMETERS_SIZE) {
            kernel.size = value;
        }
    }
    std::sort(kernel.parameters.begin(), kernel.parameters.end(),
              [](const Parameter& a, const Parameter& b) { return a.offset < b.offset; });
    return kernel;
}

// Null where `data` is no cubin.
inline std::unique_ptr<Module> module_of(const std::string& data) {
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(data.data());
    if (data.size() < sizeof *header || std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return nullptr;
    const bool whole = header->e_shoff + header->e_shnum * sizeof(Elf64_Shdr) <= data.size();
    if (header->e_machine != CUDA_MACHINE || !whole || header->e_shstrndx >= header->e_shnum) return nullptr;
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(data.data() + header->e_shoff);
    auto module = std::make_unique<Module>();
    for (int i = 0; i < header->e_shnum; i++) {
        const Elf64_Shdr& section = sections[i];
        if (section.sh_type == SHT_NOBITS) continue;
        if (section.sh_offset + section.sh_size > data.size()) return nullptr;
        const std::string title = data.data() + sections[header->e_shstrndx].sh_offset + section.sh_name;
        const std::string prefix = ".nv.info.";
        if (title.rfind(prefix, 0)) continue;
        const auto* begin = reinterpret_cast<const unsigned char*>(data.data() + section.sh_offset);
        const std::string name = title.substr(prefix.size());
        module->kernels[name] = kernel_of(name, begin, begin + section.sh_size);
    }
    return module->kernels.empty() ? nullptr : std::move(module);
}

}  // namespace stand_in
