/* Go takes its random numbers from ProcessPrng of bcryptprimitives.dll, which
   Wine lacks before version 9. */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T len)
{
	return RtlGenRandom(data, (ULONG)len);
}
